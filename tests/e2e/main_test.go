package e2e

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/holdfast-edge/holdfast/tests/tool"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// together is how many tests run at a time, unless -parallel says: most of each is
// waiting, for a line to fall silent or a container to start.
const together = "3"

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", together); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	world.Main(m, tool.Ready(tool.Kubectl, tool.MetricsServer))
}
