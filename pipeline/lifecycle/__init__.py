"""One run: trained and evaluated, or checked by overfitting. Many runs are in studies; one is opened again by saved_models."""
