"""Stage `targets`: the pivot fine-tuned into one target per fused set, and into the control arms."""
