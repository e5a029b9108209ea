"""Read chats in the formats of OpenAI and ShareGPT."""
