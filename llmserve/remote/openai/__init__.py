"""OpenAI's protocol at providers: requests as bytes, answers as events. No I/O."""
