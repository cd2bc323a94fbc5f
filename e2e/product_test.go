package e2e

type apiserver struct{}
type agent struct{}
