"""Network families: plain `nn.Module`s that know nothing of Lightning, Hydra or text."""
