"""The user's own task: questions, answers, and what several models make of them."""
