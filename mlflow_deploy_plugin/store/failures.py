"""What a database says when it fails, in one line and without the password."""

from sqlalchemy import URL

from mlflow_deploy_plugin.errors import StoreUnavailable


def redacted_url(url: URL) -> str:
    """The URL as it may be shown: no password, and no query, which may hold one too."""
    return url.set(query={}).render_as_string(hide_password=True)


def store_unavailable(url: URL, error: Exception) -> StoreUnavailable:
    """The error for a database that cannot be used."""
    text = str(getattr(error, "orig", None) or error)
    for secret in (url.password, url.query.get("password")):
        if secret:
            text = text.replace(str(secret), "***")
    return StoreUnavailable(f"the store at {redacted_url(url)} cannot be used: {' '.join(text.split())}")
