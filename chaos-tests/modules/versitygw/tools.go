//go:build tools

// Package tools names the command that the lab builds, so that go.mod keeps its dependencies.
package tools

import _ "github.com/versity/versitygw/cmd/versitygw"
