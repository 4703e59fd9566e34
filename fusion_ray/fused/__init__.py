"""Choose among models, and teach the choice: fusion functions, packing, the sparse soft-target loss."""
