package e2e

import (
	"testing"

	"github.com/holdfast-edge/holdfast/tests/tool"
	"github.com/holdfast-edge/holdfast/tests/world"
)

func TestMain(m *testing.M) { world.Main(m, tool.Ready(tool.Kubectl, tool.MetricsServer)) }
