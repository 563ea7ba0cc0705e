"""KCL and TSC: the model, its losses, its targets, its views."""
