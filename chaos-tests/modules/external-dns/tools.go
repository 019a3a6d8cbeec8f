//go:build tools

// Package tools names the command that the lab builds, so that go.mod keeps it.
package tools

import _ "sigs.k8s.io/external-dns"
