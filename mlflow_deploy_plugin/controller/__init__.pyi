from .rollouts.rollback import rollback as rollback

__all__: list[str]
