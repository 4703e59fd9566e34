"""Stage `fused`: sources are aligned to the pivot's tokens, and who teaches is chosen."""
