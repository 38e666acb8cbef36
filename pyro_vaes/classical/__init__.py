"""Classical densities of tables: what a VAE of one is compared with, and starts from."""
