"""Found architectures: the document, transfer to another network, random ones."""
