"""Writes trained models as folders that are used without their run: model folders, cards, programs of torch.export."""
