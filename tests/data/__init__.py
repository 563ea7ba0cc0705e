"""The data: lists, images, views, batches."""
