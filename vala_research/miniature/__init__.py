"""The recipe of the miniature: a Stable-Diffusion-class checkpoint trained on the sprite world.

`python -m vala_research.miniature` renders the frames, trains the VAE, the CLIP model and the
denoiser (with its text encoder, jointly), writes the Hugging Face layout, measures it and writes
its model card. Files: `configuration` says what is built, `batches` and `objectives` what each part
learns from and by which loss, `training` how, `card` how good it is. `vala_research.miniature_path`
knows where the committed weights lie.
"""
