"""SmolVLA: a small vision-language model and an action expert that reads its keys and values layer
by layer.
"""
