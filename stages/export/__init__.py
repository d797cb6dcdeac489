"""Ship a trained network without its depth branch: stripped, in several formats, with a proof and a card."""

from stages.export.card import CardFacts, LicenceLink
from stages.export.export import ExportReport, export_network
from stages.export.formats import FORMATS
from stages.export.strip import load_exported

__all__ = ["FORMATS", "CardFacts", "ExportReport", "LicenceLink", "export_network", "load_exported"]
