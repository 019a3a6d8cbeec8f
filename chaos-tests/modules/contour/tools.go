//go:build tools

// Package tools names the command that the lab builds, and the module whose CRDs it takes, so that go.mod keeps them.
package tools

import (
	_ "github.com/projectcontour/contour/cmd/contour"
	_ "sigs.k8s.io/gateway-api/apis/v1"
)
