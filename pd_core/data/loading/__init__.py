"""What training and evaluation read: prepared lists, pictures as batches."""
