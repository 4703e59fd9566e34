"""Stage `answers`: each source answers the chats that it knows best anew."""
