"""The policy: tokenizers and templates, the model and what is read off it, engines that sample from it."""
