"""What a converted network costs and where its error comes from."""
