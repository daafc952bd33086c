"""The method as pure functions of numbers and tensors: schedules, prefixes, advantages, the entropy clip, losses, and methods
declared from them. No file is read or written here."""
