"""A demonstration: its episodes, figures and card."""
