"""Export of trained networks to other formats: python -m moco.export."""
