"""The training recipe: data, losses, discriminator, balancer and the run itself."""
