"""Training of ID-CodeFormer. ``python -m training --help`` lists the commands; the core never imports this package."""
