"""The alignments that FuseLLM and FuseChat publish (`em`, `mined`, `ms`), for comparison and fidelity."""
