"""The recipe of the miniature: a Stable-Diffusion-class checkpoint trained on the sprite world.

One command, `python -m vala_research.miniature`, renders the frames, trains the VAE, the CLIP model
and the denoiser (with its text encoder, jointly), writes the Hugging Face layout, measures it and
writes its model card. Rooms: `configuration` says what is built, `objectives` what each part learns
from which batches, `training` how, `card` what came of it. Where the committed weights lie is known
to `vala_research.miniature_path`.
"""
