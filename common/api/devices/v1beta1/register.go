package v1beta1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupName is the API group.
const GroupName = "devices.holdfast.io"

// GroupVersion is the group in this version.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: GroupName, Version: "v1beta1"}
}

// AddToScheme makes the types known.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion(), &Device{}, &DeviceList{}, &DeviceModel{}, &DeviceModelList{}, &Route{}, &RouteList{})
	metav1.AddToGroupVersion(s, GroupVersion())
	return nil
}
