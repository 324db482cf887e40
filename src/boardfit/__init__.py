"""boardfit: from a language model to a board in your hand. Plan, build, chat, measure; offline."""
