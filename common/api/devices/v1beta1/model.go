package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// DeviceModel says what devices of one kind can do.
type DeviceModel struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec DeviceModelSpec `json:"spec,omitempty"`
}

// DeviceModelList lists models.
type DeviceModelList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []DeviceModel `json:"items"`
}

// DeviceModelSpec names the properties.
type DeviceModelSpec struct {
	Properties []ModelProperty `json:"properties,omitempty"`
	// Protocol is what devices of the model usually speak; for people.
	Protocol string `json:"protocol,omitempty"`
}

// ModelProperty is one property of a model.
type ModelProperty struct {
	Name        string             `json:"name"`
	Description string             `json:"description,omitempty"`
	Type        PropertyType       `json:"type"`
	AccessMode  PropertyAccessMode `json:"accessMode"`
	// Minimum and Maximum bound numbers; empty: no bound.
	Minimum string `json:"minimum,omitempty"`
	Maximum string `json:"maximum,omitempty"`
	Unit    string `json:"unit,omitempty"`
}

// PropertyType is the type of a property's values, which always travel as text.
type PropertyType string

// Types of properties.
const (
	TypeInt     PropertyType = "INT"     // a whole number of 64 bits
	TypeFloat   PropertyType = "FLOAT"   // a finite number that fits into 32 bits
	TypeDouble  PropertyType = "DOUBLE"  // a finite number of 64 bits
	TypeString  PropertyType = "STRING"  // UTF-8
	TypeBoolean PropertyType = "BOOLEAN" // true or false
	TypeBytes   PropertyType = "BYTES"   // base64
	TypeStream  PropertyType = "STREAM"  // the address of a stream; kept as text
)

// PropertyAccessMode says who may set a property.
type PropertyAccessMode string

// Access modes.
const (
	ReadWrite PropertyAccessMode = "ReadWrite"
	ReadOnly  PropertyAccessMode = "ReadOnly"
)
