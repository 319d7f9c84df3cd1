package mapper

// Type is the type of a property's values, as its model has it. These words are
// those of common/api/devices/v1beta1, which would bring half of Kubernetes with it.
type Type string

// Types.
const (
	Int     Type = "INT"
	Float   Type = "FLOAT"
	Double  Type = "DOUBLE"
	String  Type = "STRING"
	Boolean Type = "BOOLEAN"
	Bytes   Type = "BYTES" // base64
	Stream  Type = "STREAM"
)

// State says whether a device answers.
type State string

// States.
const (
	Online  State = "online"
	Offline State = "offline"
)

const (
	readWrite = "ReadWrite"
	timestamp = "timestamp" // of a value, in milliseconds since 1970
)
