"""Lower a graph to a torch.fx network."""
