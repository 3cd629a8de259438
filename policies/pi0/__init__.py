"""The pi0 and pi0.5 families: PaliGemma and a flow expert, model, checkpoints, weights."""
