"""Who somebody is: recognisers, their embeddings, and how alike two of them are."""
