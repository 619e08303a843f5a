"""Writes trained models as folders and files that are used without their run: model folders, cards, programs of torch.export."""
