"""Views of an image: where it is cropped, what becomes of its colours, and all of it for a batch on the device."""
