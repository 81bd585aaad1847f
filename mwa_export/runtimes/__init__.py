"""All runtimes behind one interface, and the choice between them."""
