"""Channel statistics that pre-trained encoders expect; images are RGB in [0, 1] before they are applied."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of each RGB channel over ImageNet, as torchvision and timm publish it."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of each RGB channel over ImageNet, as torchvision and timm publish it."""
