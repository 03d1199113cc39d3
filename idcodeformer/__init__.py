"""ID-CodeFormer: blind face restoration that keeps the person."""
