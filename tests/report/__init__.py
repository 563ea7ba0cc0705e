"""What is read from run folders: reports and trials."""
