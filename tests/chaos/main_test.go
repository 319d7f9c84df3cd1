package chaos

import (
	"testing"

	"github.com/holdfast-edge/holdfast/tests/world"
)

func TestMain(m *testing.M) { world.Main(m) }
