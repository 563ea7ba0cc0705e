"""Random views of images: geometry, colour, and both for whole batches on the device."""
