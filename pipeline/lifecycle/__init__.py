"""One run: trained and evaluated, checked by overfitting, or opened again from its folder. Many runs are in studies."""
