"""Files for devices: converted by toolchains in processes of their own, compared with the model, published with a manifest."""
