"""What is measured: accuracies, features, and what is chosen by them."""
