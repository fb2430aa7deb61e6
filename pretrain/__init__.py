"""What is learned from faces without labels: masks, the ViT encoder, MAE, the Task protocol."""
